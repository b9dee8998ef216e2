use super::*;

/// A connector with holes: every second page is there, each byte of it tells its page.
struct EverySecondPage {
    pages: u64,
    /// Says Ok and calls nobody.
    silent: bool,
}

impl PhysicalMemory for EverySecondPage {
    fn phys_read_raw_iter(&mut self, ops: PhysicalReadMemOps) -> Result<()> {
        let MemOps {
            inp,
            mut out,
            mut out_fail,
        } = ops;
        for CTup3(address, tag, data) in inp {
            let (mut at, mut done) = (address.address().to_umem(), 0);
            let mut rest: &mut [u8] = data.into();
            while !rest.is_empty() && !self.silent {
                let length = rest.len().min((4096 - at % 4096) as usize);
                let (piece, behind) = rest.split_at_mut(length);
                let page = at / 4096;
                let there = page < self.pages && page.is_multiple_of(2);
                let callback = if there { &mut out } else { &mut out_fail };
                piece.fill(if there { page as u8 } else { 0 });
                if !opt_call(callback.as_deref_mut(), CTup2(tag + done, piece.into())) {
                    return Ok(());
                }
                (at, done, rest) = (at + length as u64, done + length, behind);
            }
        }
        Ok(())
    }

    fn phys_write_raw_iter(&mut self, _: PhysicalWriteMemOps) -> Result<()> {
        unreachable!("guest memory is never written")
    }

    fn metadata(&self) -> PhysicalMemoryMetadata {
        PhysicalMemoryMetadata {
            max_address: Address::from((self.pages * 4096).wrapping_sub(1)),
            real_size: self.pages * 4096,
            readonly: false,
            ideal_batch_size: 1,
        }
    }
}

fn source(pages: u64) -> MemflowSource<EverySecondPage> {
    MemflowSource::new(EverySecondPage {
        pages,
        silent: false,
    })
    .unwrap()
}

#[test]
fn a_connector_is_read_and_what_it_cannot_read_fails() {
    let source = source(9);
    assert_eq!(source.ranges()[0].bytes, 9 * 4096);
    let mut buf = [1; 100];
    source.read(Gpa(4 * 4096 + 3996), &mut buf).unwrap();
    assert_eq!(buf, [4; 100]);
    for gpa in [
        4096,
        4 * 4096 + 3997,
        3 * 4096 + 4000,
        9 * 4096,
        u64::MAX - 200,
    ] {
        assert!(source.read(Gpa(gpa), &mut buf).is_err(), "{gpa:#x}");
    }
    let mut each = [0; 6];
    source
        .read_each(&[Gpa(0x2000), Gpa(0x8ffe), Gpa(0x4001)], &mut each)
        .unwrap();
    assert_eq!(each, [2, 2, 8, 8, 4, 4]);
    assert!(
        source
            .read_each(&[Gpa(0x2000), Gpa(0x8fff)], &mut each)
            .is_err()
    );
}

#[test]
fn a_connector_that_tells_of_no_success_has_given_nothing() {
    let silent = MemflowSource::new(EverySecondPage {
        pages: 4,
        silent: true,
    });
    let error = silent.unwrap().read(Gpa(0), &mut [0; 8]).unwrap_err();
    assert!(error.to_string().contains("0 of 8 bytes"), "{error}");
}

#[test]
fn a_connector_of_impossible_size_is_refused() {
    let of = |pages| {
        MemflowSource::new(EverySecondPage {
            pages,
            silent: false,
        })
    };
    assert!(of(0).is_err());
    assert!(of(1 << 32).is_ok());
    assert!(of((1 << 32) + 1).is_err());
}

/// Reads as memflow's tools do: what was read, and which addresses failed.
fn read_by_memflow(connector: &mut MemflowConnector, at: u64, bytes: usize) -> (Vec<u8>, Vec<u64>) {
    let mut buf = vec![0xee; bytes];
    let mut failed = Vec::new();
    let out_fail = &mut |CTup2(at, _): ReadData<'_>| {
        failed.push(at.to_umem());
        true
    };
    let piece = (
        PhysicalAddress::from(at),
        CSliceMut::from(buf.as_mut_slice()),
    );
    MemOps::with(
        std::iter::once(piece),
        None,
        Some(&mut out_fail.into()),
        |ops| connector.phys_read_raw_iter(ops),
    )
    .unwrap();
    (buf, failed)
}

#[test]
fn a_source_is_a_connector_and_the_other_way_round() {
    let mut connector = MemflowConnector::new(Arc::new(source(9)));
    let metadata = connector.metadata();
    assert_eq!(metadata.max_address.to_umem(), 9 * 4096 - 1);
    assert!(metadata.readonly);
    assert_eq!(
        read_by_memflow(&mut connector, 0x6010, 50),
        (vec![6; 50], vec![])
    );
    // Pages 2, 3 and 4, of which 3 is not there: it is reported and left alone.
    let (read, failed) = read_by_memflow(&mut connector, 0x2ff0, 0x1020);
    assert_eq!(failed, [0x3000]);
    assert_eq!(
        (read[..16].to_vec(), read[0x1010..].to_vec()),
        (vec![2; 16], vec![4; 16])
    );
    let again = MemflowSource::new(connector.clone()).unwrap();
    let mut buf = [0; 32];
    again.read(Gpa(0x8fe0), &mut buf).unwrap();
    assert_eq!(buf, [8; 32]);
    assert!(again.read(Gpa(0x8fe1), &mut buf).is_err());
    assert!(
        connector
            .phys_write(PhysicalAddress::from(0), &1_u64)
            .is_err()
    );
}
