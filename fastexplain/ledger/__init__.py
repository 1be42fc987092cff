"""What was asked and answered: the store of responses, budgets and prices."""
