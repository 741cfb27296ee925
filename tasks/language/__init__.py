"""Next-token prediction on text: from files to documents, to ids kept in a cache, to examples, with floors by counting."""
