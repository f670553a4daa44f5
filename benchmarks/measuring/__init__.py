"""What every measurement uses: records, statistics, processes, machines, models and films."""
