"""skipsweep: architecture ablations on GPTs. One trainer, many small mechanisms, each a configuration choice."""
