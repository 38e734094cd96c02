"""What each MIL op computes, one module a family; see ``registry``."""
