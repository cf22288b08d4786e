INSERT INTO visits VALUES (148, now() - interval '1.9 s', 'long'), (1000 - 901, now() - interval '1.9 s', 'long');
INSERT INTO child (id, v, extra) VALUES (1000, 1, current_user);
INSERT INTO grandchild (id, v, extra) VALUES (1001, 1, current_user);
UPDATE grandchild SET v = 3 WHERE id = 62 AND extra = current_user;
VACUUM FULL visits_1;
VACUUM FULL grandchild;
