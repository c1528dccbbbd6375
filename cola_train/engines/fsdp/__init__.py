"""FSDP2, torch's own sharding."""
