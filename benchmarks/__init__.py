"""Where the README's figures come from. Every program prints one JSON document as its last line."""
