"""What a head says in, what is made of it as declared out: smoothed numbers, chosen classes, episodes of units.

Read filters, record, processor.
"""
