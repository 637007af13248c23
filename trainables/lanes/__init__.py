"""Lanes: warm groups of Ray Train workers that take job after job, and the Ray Tune trial that borrows one."""
