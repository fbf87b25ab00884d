"""aioproc measured against its peers: ``python -m tools.bench --help``.

    __main__   the command line
    peers      who is measured: one way of calling for all of them
    works      what they have to do, one file a theme
    programs   the children; limit.c: the same work in C, as the limit; os_exec.go: in Go
    measure    one measurement, in a fresh process
    runner     rounds of measurements
    results    medians, ratios of pairs, ranges
    targets    what is asked of aioproc, and whether it is met
    report     tables
    chart      pictures

How a figure comes about: a round measures every peer once, each in a fresh process;
every other round goes backwards, so that of two peers now one and now the other comes
first. A ratio is taken within a round, where the machine was in much the same mood; the
median of the ratios counts, their minimum and maximum are stated beside it.
"""
