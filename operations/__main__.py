"""`python -m operations` is `plant`."""

from operations.cli.main import main

if __name__ == "__main__":
    main()
