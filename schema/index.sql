-- The index of a store (index.duckdb): a cache of what the manifests, clip rows and run folders say.
-- It is rebuilt from them with `xares store reindex` and is never the truth. Query the views; the tables in schema
-- `cache` may change between versions. Times are seconds (_s) or milliseconds (_ms), rates hertz (_hz).

CREATE SCHEMA cache;

-- What the index was built from: a manifest's path in the store and its size and time on disk.
CREATE TABLE cache.manifest (
    path    VARCHAR NOT NULL,  -- relative to the store
    stamp   VARCHAR NOT NULL,  -- size, modification time and inode
    id      INTEGER NOT NULL   -- part or run number inside this index
);

CREATE TABLE cache.part (
    id                INTEGER NOT NULL,
    encoder           VARCHAR NOT NULL,
    task              VARCHAR NOT NULL,
    split             VARCHAR NOT NULL,
    shard             VARCHAR NOT NULL,
    sequence          INTEGER NOT NULL,
    final             BOOLEAN NOT NULL,
    n_samples         BIGINT NOT NULL,
    n_clips           BIGINT NOT NULL,
    n_failures        BIGINT NOT NULL,
    n_frames          BIGINT NOT NULL,
    dim               INTEGER NOT NULL,
    hop_ms            DOUBLE NOT NULL,
    sample_rate_hz    INTEGER NOT NULL,
    dtype             VARCHAR NOT NULL,
    dtype_reason      VARCHAR NOT NULL,
    codec             VARCHAR NOT NULL,
    bytes             BIGINT NOT NULL,
    min               DOUBLE,
    max               DOUBLE,
    flushed_to_zero   BIGINT NOT NULL,
    source            VARCHAR NOT NULL,
    source_sha256     VARCHAR NOT NULL,
    digest            VARCHAR NOT NULL,
    created           VARCHAR NOT NULL,
    path              VARCHAR NOT NULL
);

CREATE TABLE cache.clip (
    part        INTEGER NOT NULL,
    "row"       INTEGER NOT NULL,
    clip_id     VARCHAR NOT NULL,
    key         VARCHAR NOT NULL,
    crop        INTEGER NOT NULL,
    start_s     DOUBLE NOT NULL,
    duration_s  DOUBLE NOT NULL,
    "offset"    BIGINT NOT NULL,
    n_frames    BIGINT NOT NULL,
    label       VARCHAR NOT NULL
);

CREATE TABLE cache.failure (
    part    INTEGER NOT NULL,
    key     VARCHAR NOT NULL,
    kind    VARCHAR NOT NULL,
    reason  VARCHAR NOT NULL
);

CREATE TABLE cache.run (
    id             INTEGER NOT NULL,
    run_id         VARCHAR NOT NULL,
    encoder        VARCHAR NOT NULL,
    task           VARCHAR NOT NULL,
    task_address   VARCHAR NOT NULL,
    audio_address  VARCHAR NOT NULL,
    probe          VARCHAR NOT NULL,
    probe_version  VARCHAR NOT NULL,
    protocol       VARCHAR NOT NULL,
    seed           BIGINT,
    settings       VARCHAR NOT NULL,
    "where"        VARCHAR,
    parts_digest   VARCHAR NOT NULL,
    started        VARCHAR NOT NULL,
    seconds        DOUBLE NOT NULL,
    device         VARCHAR NOT NULL,
    versions       VARCHAR NOT NULL,
    n_test         BIGINT NOT NULL,
    n_dropped      BIGINT NOT NULL,
    weight         DOUBLE NOT NULL,
    main_metric    VARCHAR NOT NULL,
    details        VARCHAR NOT NULL
);

CREATE TABLE cache.score (
    run     INTEGER NOT NULL,
    metric  VARCHAR NOT NULL,
    fold    VARCHAR,
    value   DOUBLE NOT NULL,
    low     DOUBLE,
    high    DOUBLE,
    n       BIGINT NOT NULL
);

CREATE TABLE cache.prediction (
    run                 INTEGER NOT NULL,
    fold                VARCHAR,
    split               VARCHAR,
    clip_id             VARCHAR,
    key                 VARCHAR,
    target              VARCHAR,
    prediction          VARCHAR,
    correct             BOOLEAN,
    probability         FLOAT,
    target_probability  FLOAT,
    value               DOUBLE,
    substitutions       INTEGER,
    deletions           INTEGER,
    insertions          INTEGER,
    reference_units     INTEGER
);

-- embeddings: a row a part, which is one audio shard of one task embedded by one encoder.
--   encoder name@fp8; task name@audio8 (what decides the frames); final: the shard's last part; bytes: all its files;
--   min, max: range of the values before rounding; dtype_reason: why float16 was not enough, or "fits".
CREATE VIEW embeddings AS
SELECT encoder, task, split, shard, sequence, final, n_samples, n_clips, n_failures, n_frames, dim, hop_ms,
       sample_rate_hz, dtype, dtype_reason, codec, bytes, min, max, flushed_to_zero, source, source_sha256, digest,
       created, path
FROM cache.part;

-- clips: a row a clip (or crop) and encoder. offset: its first frame inside the part; "row": its row in the pooled
--   vectors; label: the JSON beside the audio as it came, e.g. label->>'category' (as one text where it is no JSON).
CREATE VIEW clips AS
SELECT p.encoder, p.task, p.split, p.shard, p.sequence, c.clip_id, c.key, c.crop, c.start_s, c.duration_s, c."offset",
       c.n_frames, coalesce(try_cast(c.label AS JSON), to_json(c.label)) AS label, c."row"
FROM cache.clip c JOIN cache.part p ON p.id = c.part;

-- failures: a row a sample that could not become a clip, with the reason.
CREATE VIEW failures AS
SELECT p.encoder, p.task, p.split, p.shard, p.sequence, f.key, f.kind, f.reason
FROM cache.failure f JOIN cache.part p ON p.id = f.part;

-- runs: a row an evaluation: one probe trained and tested with one seed. task: name; task_address: name@fp8 of the whole
--   definition; audio_address: what the embeddings are stored under; n_dropped: samples without an embedding.
CREATE VIEW runs AS
SELECT run_id, encoder, task, task_address, audio_address, probe, probe_version, protocol, seed, settings::JSON AS settings,
       "where", parts_digest, started, seconds, device, versions::JSON AS versions, n_test, n_dropped, weight, main_metric,
       details::JSON AS details
FROM cache.run;

-- scores: a row a run, metric and fold; fold is null for the mean over folds. low, high: 95 % bootstrap interval over
--   test clips; n: test clips counted.
CREATE VIEW scores AS
SELECT r.run_id, r.encoder, r.task, r.probe, r.protocol, r.seed, s.metric, s.fold, s.value, s.low, s.high, s.n,
       r.settings::JSON AS settings, r."where", r.weight, r.n_test, r.n_dropped, r.task_address, r.audio_address,
       r.probe_version, r.parts_digest, r.started, r.seconds, r.device
FROM cache.score s JOIN cache.run r ON r.id = s.run;

-- predictions: a row a test clip (or recording, when its crops vote) and run.
--   Join clips on encoder, split, clip_id and predictions.audio_address = clips.task (on key instead of clip_id for
--   recordings). probability: of the prediction; target_probability: of the target; value: the item's share of a main
--   metric that is a mean over items (squared error, hit), null for others. What several labels, events and captions
--   look like as text: "a;b", a JSON list, captions joined by " | ". Of a language model, prediction is what it wrote and
--   target the reference; substitutions, deletions and insertions are its errors in words (characters for icer) after
--   normalisation, against reference_units.
CREATE VIEW predictions AS
SELECT r.run_id, r.encoder, r.task, r.audio_address, r.probe, r.protocol, r.seed, r.settings::JSON AS settings,
       r."where", p.fold, p.split, p.clip_id, p.key, p.target, p.prediction, p.correct, p.probability, p.target_probability,
       p.value, p.substitutions, p.deletions, p.insertions, p.reference_units
FROM cache.prediction p JOIN cache.run r ON r.id = p.run;

-- leaderboard: a row an encoder, task, probe, protocol and settings, over all test clips (no --where): score is the mean
--   over seeds of the main metric, seed_sd its standard deviation over seeds, low and high the mean 95 % bootstrap interval
--   over test clips. Protocols are never averaged together.
CREATE VIEW leaderboard AS
SELECT r.encoder, r.task, r.probe, r.protocol, r.main_metric AS metric, avg(s.value) AS score, avg(s.low) AS low,
       avg(s.high) AS high, count(*) AS n_seeds, stddev_samp(s.value) AS seed_sd, max(r.weight) AS weight,
       max(r.n_test) AS n_test, max(r.n_dropped) AS n_dropped, r.settings::JSON AS settings, r.task_address, r.probe_version,
       r.details->>'$.metric_version' AS metric_version, r.parts_digest
FROM cache.score s JOIN cache.run r ON r.id = s.run
WHERE s.fold IS NULL AND s.metric = r.main_metric AND r."where" IS NULL
GROUP BY r.encoder, r.task, r.probe, r.protocol, r.main_metric, r.settings, r.task_address, r.audio_address,
         r.probe_version, r.details->>'$.metric_version', r.parts_digest
ORDER BY r.task, r.protocol, r.probe, score DESC;
