"""From a valid body or form to the answer: jobs accepted and waited for, memories imported and forgotten."""
