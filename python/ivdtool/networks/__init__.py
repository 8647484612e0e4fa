"""The networks, one file each; `ivdtool.model` knows them by name."""
