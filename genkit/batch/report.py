NAME = "report.html"


def write(plan, out):
    pass
