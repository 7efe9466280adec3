"""Rolling a policy out under the paper's protocol (section 5.1): frozen initial states, runs, records, statistics."""
