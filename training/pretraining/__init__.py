"""The paper's method: views, terms of the loss, the step, a run, and its export."""
