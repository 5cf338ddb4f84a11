"""The embedded bucket: a Backblaze B2 native-API server for the quick start, the tests and the benchmarks.

Where to read
  `rules`, `clock`          what B2 accepts; the server's time
  `bodies`, `store`, `listing`   files and SQLite
  `http`                    HTTP/1.1 on trio, and how to misbehave on it
  `auth`, `calls`, `buckets`, `files`, `large`, `transfer`, `wire`    the native calls and their JSON
  `counters`, `faults`, `admin`, `client`     watching it and making it fail
  `api`, `server`           putting together
"""
