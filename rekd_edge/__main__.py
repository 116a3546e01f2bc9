"""`python -m rekd_edge` and `accelerate launch -m rekd_edge`: the command line."""

from rekd_edge.cli.app import main

if __name__ == "__main__":
    main()
