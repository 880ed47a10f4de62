"""Tables, plots and reports from run folders."""
