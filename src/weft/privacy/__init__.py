"""What keeps a single client's rows and updates from others: noise, its accounting, and sums that hide what is summed."""
