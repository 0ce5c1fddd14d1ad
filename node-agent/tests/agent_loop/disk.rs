//! What a disk can do to an agent: wrong content, no space, and files that are gone.

use super::*;

/// A copy of a state folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 6] = [
    ("is gone", |path| fs::remove_file(path).unwrap()),
    ("is empty", |path| fs::write(path, "").unwrap()),
    ("is cut in half", |path| {
        let content = fs::read(path).unwrap();
        fs::write(path, &content[..content.len() / 2]).unwrap();
    }),
    ("is garbage", |path| fs::write(path, [0xff; 4096]).unwrap()),
    ("is of another version", |path| {
        let content = fs::read(path).unwrap();
        fs::write(path, [b"warren-cache-99 ", content.as_slice()].concat()).unwrap();
    }),
    ("is a folder", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
];

#[tokio::test]
async fn whatever_happened_to_a_file_the_api_makes_it_good() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    put_slice(&api, "peers-1", &[peer("c", 3).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let node = lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    let key = node["status"]["publicKey"].clone();
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 4)).await;
    lab.stop().await;
    let mut files: Vec<_> = fs::read_dir(dir.0.join("cache")).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    for file in &files {
        for (what, damage) in DAMAGES {
            let case = TempDir::new();
            copy(&dir.0, &case.0);
            damage(&case.0.join("cache").join(file));
            api.set_up(false);
            let lab = Lab::start(&case.0, &api, address, Machine::new()).await;
            assert_eq!(lab.ask(Question::Live).await.status, 200, "{file:?} {what}");
            api.set_up(true);
            let whole = lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 4));
            tokio::time::timeout(DEADLINE, whole).await.unwrap_or_else(|_| panic!("{file:?} {what}"));
            assert!(lab.ask(Question::Status).await.body.contains(key.as_str().unwrap()), "{file:?} {what}");
            lab.stop().await;
        }
    }
}

#[tokio::test]
async fn a_damaged_key_is_no_new_identity_before_the_api_can_be_told() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    let key = lab.node_where(|n| n["status"]["publicKey"].is_string()).await["status"]["publicKey"].clone();
    lab.stop().await;
    for (what, damage) in &DAMAGES[1..5] {
        let case = TempDir::new();
        copy(&dir.0, &case.0);
        let path = case.0.join("private.key");
        damage(&path);
        let damaged = fs::read(&path).unwrap();
        // What an earlier case has written goes.
        operator::create_node(&api, "a", 1);
        api.set_up(false);
        let lab = Lab::start(&case.0, &api, address, Machine::new()).await;
        let ready = lab.ask(Question::Ready).await;
        assert!(ready.status == 503 && ready.body.contains("KeyMissing"), "{what}: {}", ready.body);
        assert_eq!(fs::read(&path).unwrap(), damaged, "{what}");
        // The old key, put back by an admin, would be the old identity; without that there is a new one.
        api.set_up(true);
        lab.node_where(|n| n["status"]["publicKey"].is_string() && n["status"]["publicKey"] != key).await;
        assert_eq!(fs::read(case.0.join("private.key.corrupt")).unwrap(), damaged, "{what}");
        lab.stop().await;
    }
}

#[tokio::test]
async fn a_disk_that_refuses_is_a_condition_for_as_long_as_it_does() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    let (cache, away) = (dir.0.join("cache"), dir.0.join("away"));
    fs::rename(&cache, &away).unwrap();
    fs::write(&cache, "a file where the folder was").unwrap();
    let mut mesh = api.get("meshes", "default").unwrap();
    mesh["spec"]["mtu"] = json!(1300);
    api.put("meshes", mesh);
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.mtu == 1300)).await;
    lab.node_where(|n| operator::condition(n, "StateNotPersisted").is_some()).await;
    // Nothing else changes when there is room again, nobody has a peer whose timers would make it look, and still it is noticed.
    fs::remove_file(&cache).unwrap();
    fs::rename(&away, &cache).unwrap();
    lab.node_where(|n| operator::condition(n, "StateNotPersisted").is_none()).await;
    lab.stop().await;
    api.set_up(false);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.mtu == 1300)).await;
    lab.stop().await;
}

#[tokio::test]
async fn a_clock_behind_what_was_written_is_a_condition() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| n["status"]["candidates"].as_array().is_some_and(|c| !c.is_empty())).await;
    let in_time = lab.node_where(|n| operator::condition(n, "Ready").is_some()).await;
    assert!(operator::condition(&in_time, "ClockBehind").is_none());
    lab.stop().await;
    let file = fs::read_dir(dir.0.join("cache")).unwrap().next().unwrap().unwrap().path();
    let tomorrow = std::time::SystemTime::now() + Duration::from_secs(86_400);
    fs::File::options().write(true).open(file).unwrap().set_modified(tomorrow).unwrap();
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.node_where(|n| operator::condition(n, "ClockBehind").is_some()).await;
    lab.stop().await;
}
