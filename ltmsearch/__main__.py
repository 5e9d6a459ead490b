"""`python -m ltmsearch`, which is also what `torchrun` starts."""

from ltmsearch.cli.main import main

if __name__ == "__main__":
    main()
