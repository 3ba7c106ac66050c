"""What a compression found, as one page of HTML and one picture, for people who would rather look than read."""
