"""Publishing a store: the data set card, Croissant metadata, licences."""
