"""HTML views: `mc.xray` and `mc.stepper`, each complete in one page."""
