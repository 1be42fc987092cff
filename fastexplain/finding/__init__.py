"""Ready-made searches for neurons of kinds that are worth a look."""
