"""What a developer runs: the compile report, the tuner, the floors."""
