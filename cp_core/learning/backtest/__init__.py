"""What the platform would have done with tasks whose outcomes are known: trained on some of them, judged on the others.

Arrays are (m, n), models by tasks, as in predictions. Files, pages and the command stand elsewhere.
"""
