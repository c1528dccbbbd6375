"""`python -m cola_train` and `torchrun ... -m cola_train` are `cola-train`."""

from cola_train.train import main

main()
