"""Other forms of a model than TFLite from Keras; what a lane cannot do is refused by name."""
