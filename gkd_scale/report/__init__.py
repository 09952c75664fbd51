"""One page that shows what a run did: for people who would rather look than read.

``runs`` reads run folders, ``scenes`` looks at images with their models, ``charts`` and ``page`` draw;
:func:`gkd_scale.report.report.report` is ``gkd-scale report``.
"""
