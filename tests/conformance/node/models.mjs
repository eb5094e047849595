// Permissions of a job's model, whose name has colons: items 52 and 53.
import OpenAI from 'openai';
import assert from 'node:assert/strict';
import { collect, refused } from './rows.mjs';

export async function items_52_53(client, model, facts) {
  const { permissions } = client.fineTuning.checkpoints;
  // The package itself refuses to ask without an admin key.
  await assert.rejects(async () => permissions.create(model, { project_ids: facts.projects }), /admin/i);

  const admin = client.withOptions({ adminAPIKey: facts.admin_key }).fineTuning.checkpoints.permissions;
  const created = await collect(admin.create(model, { project_ids: facts.projects }));
  assert.deepEqual(created.map((one) => one.project_id).sort(), [...facts.projects].sort());
  for (const one of created) assert.equal(one.object, 'checkpoint.permission');

  const listed = await collect(admin.list(model, { limit: 1 }));
  assert.deepEqual(listed.map((one) => one.id).sort(), created.map((one) => one.id).sort());
  for (const one of created) {
    const gone = await admin.delete(one.id, { fine_tuned_model_checkpoint: model });
    assert.deepEqual(gone, { id: one.id, object: 'checkpoint.permission', deleted: true });
  }
  assert.deepEqual(await collect(admin.list(model)), []);
  const again = admin.delete(created[0].id, { fine_tuned_model_checkpoint: model });
  await refused(again, OpenAI.NotFoundError, 404);

  // A key that isn't an administrator's is refused by the server.
  const plain = client.withOptions({ adminAPIKey: client.apiKey }).fineTuning.checkpoints.permissions;
  await refused(plain.list(model), OpenAI.PermissionDeniedError, 403);
}
