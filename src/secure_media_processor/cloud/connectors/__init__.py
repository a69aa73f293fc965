"""One module a kind of store; base.py is the contract they all keep."""
