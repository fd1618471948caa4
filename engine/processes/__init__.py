"""The processes of an engine: one supervised process per rank, and the messages between them."""
