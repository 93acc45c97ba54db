"""Images made from Debian packages, Python wheels and this repository, with no builder and no registry."""
