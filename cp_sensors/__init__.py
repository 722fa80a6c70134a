"""When things run: jobs, sensors and schedules."""
