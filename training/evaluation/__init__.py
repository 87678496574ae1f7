"""What backbones are worth: protocols, data sets, results, and the audit of a collection."""
