-- The durability in force of a namespace, `through` or `outage_queue`: an operator's command changes it.
CREATE TABLE ns_durability (
    ns   text COLLATE "C" PRIMARY KEY,
    mode text NOT NULL
);
