"""Real generation under each policy: runs, results, report."""
