"""`skipsweep board`: the reports of a multirun folder in a browser, on this machine alone, rebuilt while runs go on."""
