"""People judge explanations, blind to whose they are; and what follows from their judgements."""
