def compute_object(*a): return {}
def performance_object(*a): return {}
