"""`python -m pgce` is `pgce`."""

from pgce.command import main

if __name__ == "__main__":
    main()
