"""`python -m neuronforget`."""

from neuronforget.cli import main

if __name__ == "__main__":
    main()
