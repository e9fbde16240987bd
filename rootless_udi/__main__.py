"""`python3 -m rootless_udi` is `udi`."""

from rootless_udi.commands.udi import main

if __name__ == "__main__":
    main()
