"""The teacher-feature cache: run a giant teacher once, train from its tokens for ever.

The story, in the order of the modules::

    config    what the user may choose
    plan      list the images, name each (sid), fix which shard each belongs to
    spec      what the cache holds, and the refusal of anything else in the same folder
    views     image -> crop, resize, flip, colour -> JPEG bytes; the teacher sees the decoded bytes
    codecs    teacher tokens -> arrays on disk, one file a codec
    shard     samples -> a tar of fixed bytes, then its Parquet index, the commit marker
    build     the whole build, in the order of its steps; goes on after a kill
      folder    lock, refuse another spec, list the missing shards
      fit       fit a codec to some images
      devices   share the shards out: one device, several, or a Ray cluster (cluster)
      runner    one device: views on threads, teacher batches, a writer in the background
      progress  the bar and the report
    reader    random access by offset, every member checked
    order     which sample comes when: a pure function
    loader    a cache as a BatchSource (encoded: tokens that the GPU decodes; loader_times: what takes long)
    live      the same BatchSource with the teacher run live
    verify    every byte against its checksum

``shards/README.md`` describes the files to the byte. Nothing is imported here, so that ``--help``
stays fast.
"""
