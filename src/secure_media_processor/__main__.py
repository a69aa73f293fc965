"""``python -m secure_media_processor`` is the command `smp`."""

from secure_media_processor.cli.main import main

if __name__ == "__main__":
    main()
