"""`python -m tunesmith`: the command line, where the `tunesmith` script isn't on the path."""

from tunesmith.cli.main import main

if __name__ == "__main__":
    main()
