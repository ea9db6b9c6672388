"""Long campaigns against the product: hostile inputs, kills, broken disks. The suite runs a short sample of each."""
