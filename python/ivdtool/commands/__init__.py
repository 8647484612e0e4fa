"""The commands, one file each: parse, one call, print. Heavy modules are imported inside them."""
