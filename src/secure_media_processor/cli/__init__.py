"""The command `smp`. Each command parses, calls the library and prints; cli/ui.py holds the rules of talking to people."""
